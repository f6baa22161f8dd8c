"""A bundle of a trained graph: made, rebuilt from its files alone, given engines, verified link by link."""
