//! What L0 and L1 say to each other over the control channel.
