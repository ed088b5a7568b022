package handlers

import (
	"context"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/fairshare"
	"github.com/molecule-ai/platform/internal/wsauth"
)

// What all requests need is shared out by workspace: places for uploads, downloads, calls of push workspaces, held
// polls and streams, memory for JSON, space for uploads, database connections. Each has a fairshare.Budget of its own,
// so that files can be fetched while uploads are saturated. A request whose workspace has no share left is refused with
// 503 and Retry-After instead of queueing: a queue would grow without bound.

// newcomers holds what requests without a valid token take of the database connections.
var newcomers = uuid.NewSHA1(uuid.Nil, []byte("requests without a valid token"))

// operator holds what the operator takes who acts on no workspace.
var operator = uuid.Nil

// addressHolder returns the holder for requests without a valid token from the client's network.
func addressHolder(c *gin.Context) uuid.UUID {
	return uuid.NewSHA1(newcomers, []byte(clientNetwork(c.ClientIP()).String()))
}

// admit takes a place for the request's workspace until release is called. fairshare.ErrSaturated.
func admit(c *gin.Context, places *fairshare.Budget) (release func(), err error) {
	workspace := wsauth.WorkspaceOf(c)
	if err := places.Take(workspace, 1); err != nil {
		return nil, err
	}
	return func() { places.Release(workspace, 1) }, nil
}

const connectionsKey = "handlers.connections"

// connectionPatience is how long a request waits for a connection of its workspace's share.
const connectionPatience = 5 * time.Second

// ShareConnections gives handlers the budget of database connections. It should be smaller than the pool: looking up
// a token or a single row takes a connection without being counted.
func ShareConnections(b *fairshare.Budget) gin.HandlerFunc {
	return func(c *gin.Context) { c.Set(connectionsKey, b) }
}

// connected calls do, which uses one database connection, when the workspace's share allows it. It is for everything
// that may take long or wait for the lock of a row: otherwise the requests of a workspace whose row is locked would
// hold all connections. fairshare.ErrSaturated if the share is used up for connectionPatience.
func connected(ctx context.Context, c *gin.Context, workspace uuid.UUID, do func() error) error {
	connections, ok := c.Value(connectionsKey).(*fairshare.Budget)
	if !ok {
		return do()
	}
	if err := awaitConnection(ctx, connections, workspace); err != nil {
		return err
	}
	defer connections.Release(workspace, 1)
	return do()
}

func awaitConnection(ctx context.Context, connections *fairshare.Budget, workspace uuid.UUID) error {
	if connections.Take(workspace, 1) == nil {
		return nil
	}
	patient, cancel := context.WithTimeout(ctx, connectionPatience)
	defer cancel()
	err := connections.Acquire(patient, workspace, 1)
	if err != nil && ctx.Err() == nil {
		return fairshare.ErrSaturated
	}
	return err
}
