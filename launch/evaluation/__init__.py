"""Evaluates a trained stack: predictions of each record, figures with intervals, and simple models beside it."""
