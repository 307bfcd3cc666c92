"""Studies: what each choice of the method is worth, measured side by side."""
