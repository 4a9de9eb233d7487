"""Other servers, started and driven like ours."""
