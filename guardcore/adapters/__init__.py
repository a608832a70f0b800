"""What connects defenses to the programs that run models; heavy libraries are imported where they are used."""
