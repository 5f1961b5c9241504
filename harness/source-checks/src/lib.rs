// SPDX-License-Identifier: MIT OR Apache-2.0
//! The checks of the sources, and of the machine that they are built on.

#![forbid(unsafe_code)]

pub mod check;
pub mod ci;
pub mod contract;
pub mod doctor;
pub mod series;
pub mod tidy;
