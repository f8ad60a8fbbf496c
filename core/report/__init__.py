"""What people look at: the page of a run, the comparison, Markdown, figures."""
