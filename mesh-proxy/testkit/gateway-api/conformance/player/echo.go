package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	pb "sigs.k8s.io/gateway-api/conformance/echo-basic/grpcechoserver"
)

type many []string

func (m *many) String() string     { return strings.Join(*m, ",") }
func (m *many) Set(v string) error { *m = append(*m, v); return nil }

// serve is what the suite's image `echo-advanced` is started as.
func serve(args []string) error {
	var ports, tlsPorts, tcpPorts, grpcPorts many
	flags := flag.NewFlagSet("echo", flag.ContinueOnError)
	name := flags.String("name", "", "the pod")
	flags.Var(&ports, "port", "HTTP/1.1 and HTTP/2 without TLS")
	flags.Var(&tlsPorts, "tls", "those of the ports that are behind TLS")
	flags.Var(&tcpPorts, "tcp", "TCP")
	flags.Var(&grpcPorts, "grpc", "gRPC")
	_ = flags.String("crt", "", "not read: the certificate is made at start")
	_ = flags.String("key", "", "not read")
	if err := flags.Parse(args); err != nil {
		return err
	}
	certificate, err := selfSigned("echo")
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	for _, port := range ports {
		protocols := new(http.Protocols)
		protocols.SetHTTP1(true)
		protocols.SetHTTP2(true)
		protocols.SetUnencryptedHTTP2(true)
		server := &http.Server{
			Addr: ":" + port, Handler: answers(*name, port), Protocols: protocols, ReadHeaderTimeout: 10 * time.Second,
			TLSConfig: &tls.Config{Certificates: []tls.Certificate{*certificate}},
		}
		if slices.Contains(tlsPorts, port) {
			go func() { failed <- server.ListenAndServeTLS("", "") }()
		} else {
			go func() { failed <- server.ListenAndServe() }()
		}
	}
	for _, port := range tcpPorts {
		go func() { failed <- serveTCP(*name, port) }()
	}
	for _, port := range grpcPorts {
		listener, err := net.Listen("tcp", ":"+port)
		if err != nil {
			return err
		}
		server := grpc.NewServer()
		pb.RegisterGrpcEchoServer(server, &grpcEcho{name: *name})
		go func() { failed <- server.Serve(listener) }()
	}
	return <-failed
}

func answers(name, port string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "ServicePort=%s\nHost=%s\nURL=%s\nMethod=%s\nProto=%s\n", port, r.Host, r.RequestURI, r.Method, r.Proto)
		from, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "IP=%s\nHostname=%s\n", from, name)
		for _, line := range lines("RequestHeader", r.Header) {
			fmt.Fprintln(w, line)
		}
	})
}

func lines(field string, headers map[string][]string) []string {
	// Names in order, values of one name as they came.
	var out []string
	for _, key := range slices.Sorted(maps.Keys(headers)) {
		for _, value := range headers[key] {
			out = append(out, field+"="+key+":"+value)
		}
	}
	return out
}

func serveTCP(name, port string) error {
	listener, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer connection.Close()
			_, _ = bufio.NewReader(connection).ReadString('\n')
			fmt.Fprintf(connection, "StatusCode=200\nServicePort=%s\nHostname=%s\n", port, name)
		}()
	}
}

type grpcEcho struct {
	pb.UnimplementedGrpcEchoServer
	name string
}

func (g *grpcEcho) Echo(ctx context.Context, _ *pb.EchoRequest) (*pb.EchoResponse, error) {
	headers, _ := metadata.FromIncomingContext(ctx)
	assertions := &pb.Assertions{Context: &pb.Context{Pod: g.name}}
	for key, values := range headers {
		for _, value := range values {
			assertions.Headers = append(assertions.Headers, &pb.Header{Key: key, Value: value})
		}
	}
	if from, ok := peer.FromContext(ctx); ok {
		assertions.Authority = from.Addr.String()
	}
	return &pb.EchoResponse{Assertions: assertions}, nil
}

// client calls once or often and prints what came in the suite's form: lines of FIELD=VALUE, calls apart by empty lines.
func client(args []string) error {
	var headers many
	flags := flag.NewFlagSet("client", flag.ContinueOnError)
	method := flags.String("method", "GET", "method")
	count := flags.Int("count", 1, "calls")
	namespace := flags.String("namespace", "default", "whose names are tried")
	nameserver := flags.String("nameserver", "", "who is asked for names")
	flags.Var(&headers, "H", "NAME:VALUE")
	// The URL stands before the flags of the suite.
	var url string
	var rest []string
	for _, arg := range args {
		if strings.Contains(arg, "://") && url == "" && !strings.HasPrefix(arg, "-") {
			url = arg
		} else {
			rest = append(rest, arg)
		}
	}
	if err := flags.Parse(rest); err != nil {
		return err
	}
	dial := dialer(*nameserver, *namespace)
	for range *count {
		var err error
		if target, ok := strings.CutPrefix(url, "grpc://"); ok {
			err = callGRPC(strings.TrimSuffix(target, "/"), dial, headers)
		} else {
			err = callHTTP(url, *method, dial, headers)
		}
		if err != nil {
			return err
		}
		fmt.Println()
	}
	return nil
}

type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// dialer resolves as a pod does: five search domains, the node's name server.
func dialer(nameserver, namespace string) dialFunc {
	plain := &net.Dialer{Timeout: 5 * time.Second}
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return plain.DialContext(ctx, network, net.JoinHostPort(nameserver, "53"))
	}}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		if net.ParseIP(host) == nil {
			found := ""
			for _, suffix := range []string{"." + namespace + ".svc.cluster.local.", ".svc.cluster.local.", ".cluster.local.", "."} {
				if all, err := resolver.LookupHost(ctx, host+suffix); err == nil && len(all) > 0 {
					found = all[0]
					break
				}
			}
			if found == "" {
				return nil, fmt.Errorf("%s has no address", host)
			}
			host = found
		}
		return plain.DialContext(ctx, network, net.JoinHostPort(host, port))
	}
}

func callHTTP(url, method string, dial dialFunc, headers many) error {
	transport := &http.Transport{DialContext: dial, DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // a test's own server
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	request, err := http.NewRequest(method, url, nil)
	if err != nil {
		return err
	}
	for _, header := range headers {
		key, value, _ := strings.Cut(header, ":")
		if strings.EqualFold(key, "host") {
			request.Host = value
		} else {
			request.Header.Add(key, value)
		}
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	fmt.Println("StatusCode=" + strconv.Itoa(response.StatusCode))
	for _, line := range lines("ResponseHeader", response.Header) {
		fmt.Println(line)
	}
	fmt.Print(string(body))
	return nil
}

func callGRPC(target string, dial dialFunc, headers many) error {
	connection, err := grpc.NewClient("passthrough:///"+target, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) { return dial(ctx, "tcp", address) }))
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, header := range headers {
		key, value, _ := strings.Cut(header, ":")
		ctx = metadata.AppendToOutgoingContext(ctx, key, value)
	}
	response, err := pb.NewGrpcEchoClient(connection).Echo(ctx, &pb.EchoRequest{})
	if err != nil {
		return err
	}
	fmt.Println("StatusCode=200\nHostname=" + response.Assertions.Context.Pod)
	for _, header := range response.Assertions.Headers {
		fmt.Println("RequestHeader=" + header.Key + ":" + header.Value)
	}
	return nil
}

func selfSigned(name string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(240 * time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
