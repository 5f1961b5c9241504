//! L1 as seen from L0: emulators, images, snapshots, logs.
