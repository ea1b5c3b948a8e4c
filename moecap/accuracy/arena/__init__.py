"""Arena-Hard: a model's answers to open questions against a baseline's, by a judge, in both orders."""
