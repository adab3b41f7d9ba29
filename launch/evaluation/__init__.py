"""How good a trained stack is: records' predictions, their figures with intervals, and simple models beside it."""
