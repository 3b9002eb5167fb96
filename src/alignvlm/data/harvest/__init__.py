"""Words with their places from PDFs and scans."""
