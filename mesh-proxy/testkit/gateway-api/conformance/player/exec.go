package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// inside starts a program in a network namespace.
func inside(folder, place string, argv, env []string, out, err io.Writer) (*exec.Cmd, error) {
	command := exec.Command(argv[0], argv[1:]...)
	command.Env, command.Stdout, command.Stderr = env, out, err
	started := make(chan error)
	go func() {
		// The thread is never unlocked, so it ends with this goroutine and its namespace with it.
		runtime.LockOSThread()
		file, err := os.Open(filepath.Join(folder, place))
		if err == nil {
			err = unix.Setns(int(file.Fd()), unix.CLONE_NEWNET)
			_ = file.Close()
		}
		if err == nil {
			err = command.Start()
		}
		started <- err
	}()
	return command, <-started
}

// kubelet answers the API server's exec and logs, which is all that the suite asks of a node.
func (p *player) kubelet() error {
	certificate, err := selfSigned("kubelet")
	if err != nil {
		return err
	}
	server := &http.Server{
		Addr: p.Kubelet, Handler: http.HandlerFunc(p.serve), ReadHeaderTimeout: 10 * time.Second,
		// SPDY takes the connection over; HTTP/2 cannot be taken over.
		TLSConfig:    &tls.Config{Certificates: []tls.Certificate{*certificate}, NextProtos: []string{"http/1.1"}},
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	return server.ListenAndServeTLS("", "")
}

// said is what a pod has written, with times: the suite looks for what came since a moment.
type said struct {
	mu    sync.Mutex
	file  io.Writer
	part  []byte
	lines []line
}

type line struct {
	at   time.Time
	text string
}

// most lines that are kept of a pod.
const most = 20_000

func (s *said) Write(text []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.part = append(s.part, text...)
	for {
		end := bytes.IndexByte(s.part, '\n')
		if end < 0 {
			break
		}
		s.lines = append(s.lines, line{time.Now(), string(s.part[:end+1])})
		s.part = s.part[end+1:]
	}
	if len(s.lines) > most {
		s.lines = s.lines[len(s.lines)-most:]
	}
	return s.file.Write(text)
}

func (s *said) since(at time.Time) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out strings.Builder
	for _, l := range s.lines {
		// The API server asks for whole seconds.
		if !l.at.Before(at) {
			out.WriteString(l.text)
		}
	}
	return out.String()
}

// serve answers /exec/NAMESPACE/POD/CONTAINER?command=… and /containerLogs/NAMESPACE/POD/CONTAINER?sinceTime=…
func (p *player) serve(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if len(parts) != 4 || parts[0] != "exec" && parts[0] != "containerLogs" {
		http.NotFound(w, r)
		return
	}
	p.mu.Lock()
	instance := p.running[types.NamespacedName{Namespace: parts[1], Name: parts[2]}]
	p.mu.Unlock()
	if instance == nil {
		http.Error(w, "no such pod", http.StatusNotFound)
		return
	}
	query := r.URL.Query()
	if parts[0] == "containerLogs" {
		since, _ := time.Parse(time.RFC3339, query.Get("sinceTime"))
		_, _ = io.WriteString(w, instance.said.since(since))
		return
	}
	wanted := 1 // the error stream
	for _, name := range []string{"input", "output", "error", "stdin", "stdout", "stderr"} {
		if query.Get(name) == "1" || query.Get(name) == "true" {
			wanted++
		}
	}
	if _, err := httpstream.Handshake(r, w, []string{"v4.channel.k8s.io"}); err != nil {
		log.Printf("exec: %v", err)
		return
	}
	incoming := make(chan httpstream.Stream, wanted)
	connection := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(s httpstream.Stream, _ <-chan struct{}) error {
		select {
		case incoming <- s:
			return nil
		default:
			return errors.New("too many streams")
		}
	})
	if connection == nil {
		return
	}
	defer connection.Close()
	streams := map[string]httpstream.Stream{}
	for len(streams) < wanted {
		select {
		case s := <-incoming:
			streams[s.Headers().Get("streamType")] = s
		case <-time.After(10 * time.Second):
			log.Printf("exec: %d of %d streams", len(streams), wanted)
			return
		}
	}
	p.exec(instance, query["command"], streams)
}

func (p *player) exec(i *instance, argv []string, streams map[string]httpstream.Stream) {
	status := meta.Status{Status: meta.StatusSuccess}
	var out, failed bytes.Buffer
	if len(argv) > 0 && argv[0] == "client" {
		self, _ := os.Executable()
		argv = append([]string{self, "client", "--namespace=" + i.pod.Namespace, "--nameserver=" + p.Nameserver}, argv[1:]...)
	}
	command, err := inside(p.Namespaces, i.place.Name, argv, os.Environ(), &out, &failed)
	if err == nil {
		err = command.Wait()
	}
	if err != nil {
		status = meta.Status{Status: meta.StatusFailure, Reason: meta.StatusReasonInternalError, Message: fmt.Sprint(err)}
	}
	for name, text := range map[string]*bytes.Buffer{"stdout": &out, "stderr": &failed} {
		if s := streams[name]; s != nil {
			_, _ = io.Copy(s, text)
			_ = s.Close()
		}
	}
	if s := streams["error"]; s != nil {
		text, _ := json.Marshal(status)
		_, _ = s.Write(text)
		_ = s.Close()
	}
	// The peer closes when it has read everything.
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	<-ctx.Done()
}
