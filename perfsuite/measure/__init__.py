"""Ways to time a callable: one file per device."""
