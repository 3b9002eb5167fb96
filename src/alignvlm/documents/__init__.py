"""Documents as people have them: opening images and PDFs, their pages and their words."""
