DROP TABLE workspace_tokens;
DROP TABLE workspaces;
