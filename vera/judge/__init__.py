"""Questions, answers and their grading by another language model. No torch here."""
