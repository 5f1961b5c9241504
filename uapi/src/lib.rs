//! The KVMI contract: messages, ids and ioctls shared by the kernel and its tools.
