package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"

	"github.com/acme-bridge/acme-bridge/admin"
	"github.com/acme-bridge/acme-bridge/config"
)

// dataDir is where the embedded default keeps its state.
const dataDir = "./acme-bridge-data"

func serveCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "serve [--config FILE]",
		Short: "Run the server; without a configuration, the embedded default",
		Args:  usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(file)
			if err != nil {
				return err
			}
			return serve(cmd.Context(), cfg, file, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration `FILE` (default: the embedded default, under "+dataDir+")")
	return cmd
}

func loadConfig(file string) (*config.Config, error) {
	if file == "" {
		return config.Embedded(dataDir), nil
	}
	cfg, err := config.Load(file)
	if err != nil {
		return nil, usageError{err}
	}
	return cfg, nil
}

// serve runs listeners and worker until ctx ends or one of them fails; then it
// drains: requests and calls to CAs under way are waited for.
func serve(ctx context.Context, cfg *config.Config, file string, out io.Writer) error {
	if os.Getenv("GOGC") == "" {
		// What lives long is small here, so that the default would collect every
		// few flows; this costs some tens of MB.
		debug.SetGCPercent(400)
	}
	stopProfile, err := profile()
	if err != nil {
		return err
	}
	defer stopProfile()
	log := newLogger(cfg.Log)
	app, err := newApp(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer app.close()

	acmeListener, err := listen(cfg.Server.Listen, "server.listen")
	if err != nil {
		return err
	}
	adminListener, err := listen(cfg.Admin.Listen, "admin.listen")
	if err != nil {
		acmeListener.Close()
		return err
	}
	acmeServer := newHTTPServer(app.server, log)
	adminServer := admin.NewServer(app.adminHandler(file, adminListener.Addr()), log)

	// The worker outlives the listeners: a finalize that is held still gets its
	// certificate.
	workCtx, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error { return app.worker.Run(workCtx) })
	if app.own != nil {
		group.Go(func() error { return app.own.Run(groupCtx) })
	}
	group.Go(func() error { return serveHTTP(acmeServer, app.tlsListener(acmeListener)) })
	group.Go(func() error { return serveHTTP(adminServer, adminListener) })
	group.Go(func() error { return app.watchSignals(groupCtx, file) })
	group.Go(func() error { return app.watch(groupCtx) })
	group.Go(func() error {
		<-groupCtx.Done()
		most := app.cfg().DrainTime()
		log.Info("shutting down", "atMost", most.String())
		// A second signal ends the process at once.
		signal.Reset(os.Interrupt, syscall.SIGTERM)
		drainCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), most)
		defer cancel()
		err := errors.Join(shutdown(drainCtx, acmeServer), shutdown(drainCtx, adminServer))
		stopWork()
		return err
	})
	log.Info("serving", "version", versionText(), "acme", app.cfg().Server.ExternalURL, "listen", acmeListener.Addr().String(), "admin", adminListener.Addr().String())
	if file == "" {
		app.printWelcome(out)
	}
	err = group.Wait()
	log.Info("stopped")
	return err
}

func listen(addr, key string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	// Beyond this many connections clients wait; memory has a bound.
	return netutil.LimitListener(l, 8192), nil
}

// longestAnswer has room for the longest finalize_hold, which a reload may set,
// and for the revocation at a slow backend.
const longestAnswer = 2*time.Minute + 30*time.Second

func newHTTPServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       20 * time.Second,
		WriteTimeout:      longestAnswer,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug), // broken handshakes and the like
	}
}

func serveHTTP(s *http.Server, l net.Listener) error {
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	}
	return nil
}

func shutdown(ctx context.Context, s *http.Server) error {
	if err := s.Shutdown(ctx); err != nil {
		return errors.Join(fmt.Errorf("requests cut off at shutdown: %w", err), s.Close())
	}
	return nil
}

// watchSignals reloads the configuration on SIGHUP.
func (a *app) watchSignals(ctx context.Context, file string) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
			// Logged by reload; the old configuration stays in force.
			_, _ = a.reload(ctx, file)
		}
	}
}

// tlsListener puts TLS in front, unless a proxy does that.
func (a *app) tlsListener(l net.Listener) net.Listener {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	switch a.cfg().Server.TLS.Mode {
	case config.TLSOff:
		return l
	case config.TLSFiles:
		cfg.GetCertificate = (&fileCertificate{app: a}).get
	default:
		cfg.GetCertificate = a.own.GetCertificate
	}
	return tls.NewListener(l, cfg)
}

// A fileCertificate reads certificate and key again when the files change.
type fileCertificate struct {
	app *app

	mu      sync.Mutex
	looked  time.Time
	stamp   string
	current *tls.Certificate
}

// fileLook is how often the files are looked at.
const fileLook = 10 * time.Second

func (f *fileCertificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.current != nil && time.Since(f.looked) < fileLook {
		return f.current, nil
	}
	f.looked = time.Now()
	files := f.app.cfg().Server.TLS
	stamp := fileStamp(files.CertFile) + fileStamp(files.KeyFile)
	if f.current != nil && stamp == f.stamp {
		return f.current, nil
	}
	cert, err := tls.LoadX509KeyPair(files.CertFile, files.KeyFile)
	if err != nil {
		f.app.log.Error("server.tls: files cannot be used, keeping the certificate read before", "err", err)
		if f.current == nil {
			return nil, err
		}
		return f.current, nil
	}
	f.current, f.stamp = &cert, stamp
	return f.current, nil
}

func fileStamp(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return path + err.Error()
	}
	return fmt.Sprintf("%s %d %d;", path, info.Size(), info.ModTime().UnixNano())
}

// printWelcome tells a newcomer what to paste. The names and ports are those of
// the embedded default.
func (a *app) printWelcome(out io.Writer) {
	root, err := filepath.Abs(filepath.Join(dataDir, "ca", "root.crt"))
	if err != nil {
		root = filepath.Join(dataDir, "ca", "root.crt")
	}
	fmt.Fprintf(out, `
acme-bridge is running with its own local CA.
Directory:         %[1]s/directory
Root certificate:  %[2]s
Operators:         http://%[3]s (/healthz, /readyz, /metrics)

Get a first certificate, in another terminal of this machine:

  REQUESTS_CA_BUNDLE=%[2]s certbot certonly --standalone --http-01-port 5080 \
    --server %[1]s/directory -d demo.localhost \
    --agree-tos --register-unsafely-without-email --non-interactive \
    --config-dir ./certbot/config --work-dir ./certbot/work --logs-dir ./certbot/logs

  LEGO_CA_CERTIFICATES=%[2]s lego --server %[1]s/directory \
    --domains demo.localhost --email you@example.com --accept-tos \
    --http --http.port :5080 --path ./lego run

`, a.cfg().Server.ExternalURL, root, a.cfg().Admin.Listen)
}
