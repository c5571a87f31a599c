"""The registry: what a model's bundle holds and that it is what was published; versions, references and aliases."""
