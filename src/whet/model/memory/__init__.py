"""Trading time, or another memory, for memory of the device."""
