//go:build linux

package main

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"net"
	"net/http"
	"os"
	"strings"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"
)

// bareCommand makes this program a server of bare handlers: gin and the necessary queries, without checks, logs or
// metrics.
const bareCommand = "serve-bare"

type bareServer struct{ access, page, ack, first, chunk *sql.Stmt }

func serveBare(addr, dsn string) error {
	db, err := openPool(dsn, false)
	if err != nil {
		return err
	}
	var b bareServer
	for stmt, query := range map[**sql.Stmt]string{&b.access: rawAccess, &b.page: rawPage, &b.ack: rawAck, &b.first: rawFirst, &b.chunk: rawNext} {
		if *stmt, err = db.Prepare(query); err != nil { // cached
			return err
		}
	}
	gin.SetMode(gin.ReleaseMode)
	e := gin.New()
	w := e.Group("/workspaces/:id", b.authenticate)
	w.GET("/activity", b.poll)
	w.GET("/pending-uploads/:file_id/content", b.content)
	w.POST("/pending-uploads/:file_id/ack", b.acknowledge)
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	return http.Serve(listener, e) // loopback, for a minute
}

func (b *bareServer) authenticate(c *gin.Context) {
	hash := sha256.Sum256([]byte(strings.TrimPrefix(c.GetHeader("Authorization"), "Bearer ")))
	var token uuid.UUID
	if err := b.access.QueryRowContext(c.Request.Context(), hash[:], c.Param("id")).Scan(&token); err != nil {
		c.AbortWithStatusJSON(http.StatusUnauthorized, gin.H{"error": err.Error()})
	}
}

func (b *bareServer) poll(c *gin.Context) {
	rows, err := b.page.QueryContext(c.Request.Context(), c.Param("id"), c.Query("since_id"))
	if err != nil {
		c.JSON(http.StatusInternalServerError, gin.H{"error": err.Error()})
		return
	}
	defer rows.Close()
	found := []struct{ ID string }{}
	for rows.Next() {
		found = append(found, struct{ ID string }{"a row"})
	}
	c.JSON(http.StatusOK, found)
}

func (b *bareServer) acknowledge(c *gin.Context) {
	if _, err := b.ack.ExecContext(c.Request.Context(), c.Param("file_id"), c.Param("id")); err != nil {
		c.JSON(http.StatusInternalServerError, gin.H{"error": err.Error()})
		return
	}
	c.JSON(http.StatusOK, gin.H{"acked": true})
}

// content writes each row as the driver returns it, without a copy.
func (b *bareServer) content(c *gin.Context) {
	ctx := c.Request.Context()
	rows, err := b.first.QueryContext(ctx, c.Param("file_id"), c.Param("id"))
	for seq := 1; err == nil; seq++ {
		var data sql.RawBytes
		found := rows.Next()
		if found {
			if err = rows.Scan(&data); err == nil {
				_, err = c.Writer.Write(data)
			}
		}
		_ = rows.Close()
		if err != nil || !found {
			return // the client notices, because it counts the bytes
		}
		rows, err = b.chunk.QueryContext(ctx, c.Param("file_id"), seq)
	}
}

// startBare starts this program as the bare server.
func startBare(ctx context.Context, dsn string) (*platform, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := listener.Addr().String()
	if err := listener.Close(); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	b := &platform{url: "http://" + addr, exited: make(chan error, 1), cmd: command(os.Environ(), self, bareCommand, addr, dsn)}
	b.cmd.Stderr = os.Stderr
	if err := b.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { b.exited <- b.cmd.Wait() }()
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	return b, b.awaitStatus(ctx, "/", http.StatusNotFound)
}

// viaBareServer returns c with its operations sent to the bare server instead of the platform. Its ratio is the maximum
// that the platform could reach.
func (c benchCase) viaBareServer() benchCase {
	servers := map[*platform]*platform{}
	prepare, cleanup := c.prepare, c.cleanup
	c.name, c.target, c.targets, c.fresh = "bare: "+c.name, 0, nil, false
	c.prepare = func(ctx context.Context, p *platform) (err error) {
		if err := prepare(ctx, p); err != nil {
			return err
		}
		if servers[p], err = startBare(ctx, p.dsn); err == nil {
			p.bare = servers[p].url
		}
		return err
	}
	c.cleanup = func(ctx context.Context, p *platform) error {
		p.bare = ""
		_ = servers[p].cmd.Process.Kill()
		<-servers[p].exited
		return cleanup(ctx, p)
	}
	return c
}
