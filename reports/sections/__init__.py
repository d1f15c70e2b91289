"""One module for each part of the report: from the result to what its template shows. Pure; words and numbers only."""
