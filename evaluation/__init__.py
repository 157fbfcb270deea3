"""How good a restoration is: where scored pictures come from, what restores them, scores, tables and the report."""
