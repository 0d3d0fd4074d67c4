"""Pure arithmetic from a run and its model to a Plan, and from finished runs to a law; no torch."""
