"""The web page for one person: a document, its answers, and what each token is read as."""
