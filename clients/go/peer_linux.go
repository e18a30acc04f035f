package discovery

import (
	"net"
	"syscall"
)

// peerUID returns the user ID of the process that listens on the Unix socket of a connection.
func peerUID(conn *net.UnixConn) (int, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var peer *syscall.Ucred
	var failure error
	err = raw.Control(func(socket uintptr) {
		peer, failure = syscall.GetsockoptUcred(int(socket), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err != nil {
		return 0, err
	}
	if failure != nil {
		return 0, failure
	}
	return int(peer.Uid), nil
}
