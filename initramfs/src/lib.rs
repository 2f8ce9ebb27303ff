//! Overlay archive, module closure, early boot.
