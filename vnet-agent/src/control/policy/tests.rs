//! A change takes effect as a whole, or not at all.
