package netns

import (
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Registers: reg1 is 16 bytes wide (a device name fits), reg2 follows it. word1
// is the second 4-byte register, which follows the first four bytes of reg1.
const (
	reg1  = unix.NFT_REG_1
	reg2  = unix.NFT_REG_2
	word1 = unix.NFT_REG32_00 + 1
)

// rule joins the parts of a rule.
func rule(parts ...[]expr.Any) []expr.Any {
	var out []expr.Any
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// device matches packets by the beginning of a device's name. A comparison that
// is shorter than the register compares the first bytes only.
func device(key expr.MetaKey, op expr.CmpOp, prefix string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: reg1},
		&expr.Cmp{Op: op, Register: reg1, Data: []byte(prefix)},
	}
}

func from(prefix string) []expr.Any    { return device(expr.MetaKeyIIFNAME, expr.CmpOpEq, prefix) }
func notFrom(prefix string) []expr.Any { return device(expr.MetaKeyIIFNAME, expr.CmpOpNeq, prefix) }
func to(prefix string) []expr.Any      { return device(expr.MetaKeyOIFNAME, expr.CmpOpEq, prefix) }
func notTo(prefix string) []expr.Any   { return device(expr.MetaKeyOIFNAME, expr.CmpOpNeq, prefix) }

// loadDevice puts the whole name of the device a packet came from into reg1.
func loadDevice() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg1}}
}

// source and destination load an IPv4 address into a register.
func source(reg uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}}
}

func destination(reg uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}}
}

// in looks the key in reg1 up in a set.
func in(set *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg1, SetName: set.Name, SetID: set.ID}}
}

func notIn(set *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg1, SetName: set.Name, SetID: set.ID, Invert: true}}
}

func notIPv4() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: []byte{unix.NFPROTO_IPV4}},
	}
}

func protocol(op expr.CmpOp, number byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1},
		&expr.Cmp{Op: op, Register: reg1, Data: []byte{number}},
	}
}

// port matches the destination port of TCP and UDP.
func port(n uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: binaryutil.BigEndian.PutUint16(n)},
	}
}

// tcpFlags matches TCP packets of which the flags in mask are as in want.
func tcpFlags(mask, want byte) []expr.Any {
	return rule(protocol(expr.CmpOpEq, unix.IPPROTO_TCP), []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 1, Mask: []byte{mask}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{want}},
	})
}

// rejectICMPX is the kernel's NFT_REJECT_ICMPX_UNREACH.
const rejectICMPX = 2

// TCP flags.
const (
	tcpSyn = 0x02
	tcpAck = 0x10
)

// state matches packets by what connection tracking says of them.
func state(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: reg1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: binaryutil.NativeEndian.PutUint32(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: binaryutil.NativeEndian.PutUint32(0)},
	}
}

// Directions of a tracked packet: with its connection's first packet, or against.
const (
	original = 0
	reply    = 1
)

func direction(d byte) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{d}},
	}
}

// toHost matches packets to any address of the host, whichever it is.
func toHost() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

// notRoots matches packets of sockets that a user other than root has opened.
// What the kernel itself sends has no socket and does not match.
func notRoots() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeySKUID, Register: reg1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: binaryutil.NativeEndian.PutUint32(0)},
	}
}

// over matches when the packet's source has used up what limit allows it; set
// keeps one limit per source.
func over(set *nftables.Set, operation uint32, limit expr.Any) []expr.Any {
	return rule(source(reg1), []expr.Any{
		&expr.Dynset{SrcRegKey: reg1, SetName: set.Name, SetID: set.ID, Operation: operation, Exprs: []expr.Any{limit}},
	})
}

func perSecond(n int) expr.Any {
	return &expr.Limit{Type: expr.LimitTypePkts, Rate: uint64(n), Unit: expr.LimitTimeSecond,
		Burst: uint32(n) * burstSeconds, Over: true}
}

func connections(n int) expr.Any {
	return &expr.Connlimit{Count: uint32(n), Flags: expr.NFT_CONNLIMIT_F_INV}
}

// clampMSS lowers the segment size a handshake announces to what the route takes.
func clampMSS() []expr.Any {
	return rule(tcpFlags(tcpSyn, tcpSyn), []expr.Any{
		&expr.Rt{Register: reg1, Key: expr.RtTCPMSS},
		&expr.Byteorder{SourceRegister: reg1, DestRegister: reg1, Op: expr.ByteorderHton, Len: 2, Size: 2},
		&expr.Exthdr{SourceRegister: reg1, Type: unix.TCPOPT_MAXSEG, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt},
	})
}

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}

func drop() []expr.Any             { return verdict(expr.VerdictDrop, "") }
func accept() []expr.Any           { return verdict(expr.VerdictAccept, "") }
func goTo(chain string) []expr.Any { return verdict(expr.VerdictGoto, chain) }

func reset() []expr.Any {
	return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}
}

// unreachable says that the port is closed: of all ICMP errors, it is the one
// that gVisor's network stack hands on to the sender of a UDP packet.
func unreachable() []expr.Any {
	return []expr.Any{&expr.Reject{Type: rejectICMPX, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}}
}

func masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }
