"""What a person looks at after a run: pictures of videos with their scores, and tables of the numbers."""
