"""The evidence of every feature: collected in one pass, kept in one database file a run."""
