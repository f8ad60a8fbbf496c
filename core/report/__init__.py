"""Reports for people: the page of a run, the comparison of runs, Markdown, figures."""
