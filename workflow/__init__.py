"""Commands beside the library: index videos, train, renew what is shipped, list results and claims."""
