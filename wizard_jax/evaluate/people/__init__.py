"""People as raters: sheets of questions go out with a secret key, ratings come back and are checked against it."""
