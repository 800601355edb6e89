"""How the schema came to be, step by step: a user's database is migrated, never deleted."""
