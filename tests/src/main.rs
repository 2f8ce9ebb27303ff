//! The lab: virtual machines, scenarios and subjects.

fn main() {}
