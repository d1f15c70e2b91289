"""A server of ours: started, proved ready, stopped; gone afterwards, whatever happened."""
