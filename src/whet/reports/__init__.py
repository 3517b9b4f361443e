"""What a person looks at: the prepared data as one HTML file, or in the terminal."""
