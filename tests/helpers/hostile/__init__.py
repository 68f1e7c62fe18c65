"""Everything hostile that a build may read: tables of files, each with the reasons that it must end with."""
