"""The laboratory: complete spaces recorded with their raw samples, and searches scored on them without a device."""
