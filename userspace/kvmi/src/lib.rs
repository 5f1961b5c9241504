//! Client library for KVM introspection.
