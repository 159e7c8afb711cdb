package main

import (
	"maps"
	"slices"
	_ "unsafe" // for go:linkname

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/seccomp"
	"gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"
	"gvisor.dev/gvisor/pkg/sentry/platform"
	_ "gvisor.dev/gvisor/pkg/sentry/platform/systrap" // registers the platform
	filters "gvisor.dev/gvisor/runsc/boot/filter/config"
)

// rules is what gVisor compiles its own list of programs from. The list itself
// has hundreds, for devices and platforms that the driver never uses, and takes
// half a minute.
//
//go:linkname rules gvisor.dev/gvisor/runsc/boot/filter/config.rules
func rules(opt filters.Options, vars precompiledseccomp.Values) (allowed, denied seccomp.SyscallRules)

// ownPID stands in front of the platform's list. That list lets the sandbox
// signal itself by the number of the process that compiles the program, which
// would be ours; with ownPID it is a variable, filled in by the sandbox.
type ownPID struct{ platform.SeccompInfo }

// SyscallFilters is the platform's, with the one rule replaced.
func (p ownPID) SyscallFilters(vars precompiledseccomp.Values) seccomp.SyscallRules {
	list := p.SeccompInfo.SyscallFilters(vars)
	list.Remove(unix.SYS_RT_TGSIGQUEUEINFO)
	list.Set(unix.SYS_RT_TGSIGQUEUEINFO, seccomp.PerArg{
		seccomp.EqualTo(vars.GetUint64("self_pid")),
		seccomp.AnyValue{},
		seccomp.EqualTo(unix.SIGKILL),
	})
	return list
}

// variants lists the sandboxes that the driver may start.
func variants() ([]filters.Options, error) {
	systrap, err := platform.Lookup("systrap")
	if err != nil {
		return nil, err
	}
	var list []filters.Options
	for _, info := range systrap.PrecompiledSeccompInfo() {
		for _, hostFilesystem := range []bool{true, false} {
			list = append(list, filters.Options{Platform: info, HostFilesystem: hostFilesystem})
		}
	}
	return list, nil
}

// compile returns the program of each, by key.
func compile() (map[string]precompiledseccomp.Program, error) {
	list, err := variants()
	if err != nil {
		return nil, err
	}
	ready := map[string]precompiledseccomp.Program{}
	for _, opt := range list {
		opt.Platform = ownPID{opt.Platform}
		names := slices.Sorted(maps.Keys(opt.Vars()))
		p, err := precompiledseccomp.Precompile(opt.ConfigKey(), names, func(vars precompiledseccomp.Values) *seccomp.Program {
			allowed, denied := rules(opt, vars)
			return program(opt, allowed, denied)
		})
		if err != nil {
			return nil, err
		}
		ready[p.Name] = p
	}
	return ready, nil
}

// program is what gVisor itself makes of two lists of rules.
func program(opt filters.Options, allowed, denied seccomp.SyscallRules) *seccomp.Program {
	return &seccomp.Program{
		RuleSets: []seccomp.RuleSet{{Rules: denied.Copy()}, {Rules: allowed.Copy(), Action: seccomp.Allow}},
		Options:  filters.SeccompOptions(opt),
	}
}
