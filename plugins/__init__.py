"""The plugins that come with detcli: one paper each."""
