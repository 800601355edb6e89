"""How a source becomes a callable: one file per language or compiler, each caching by digest."""
