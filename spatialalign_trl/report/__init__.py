"""Show the outcome of a run to a person: an HTML report, pictures of videos with their scores, and tables."""
