"""A network as a graph of operators, and the rule that says what each does over time."""
