"""Statistics that know neither models nor coders: scores with an interval and a null, and how they compare."""
