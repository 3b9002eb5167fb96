"""The one way from a question and pages to an answer, a reading, a citation or embeddings."""
