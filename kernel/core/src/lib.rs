//! Decides what KVM introspection does; does no I/O and holds no lock.
