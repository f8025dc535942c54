"""Tests of what localmoe does over the network, against a local server with the Hub's protocol."""
