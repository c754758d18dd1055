// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

// Maps the registers of the first device from several goroutines at once, while the runtime preempts them by signals and
// collects garbage; and recovers from a bus error of its own.
package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"unsafe"
)

func ioctl(file int, number uintptr, argument unsafe.Pointer) {
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(file), number, uintptr(argument)); errno != 0 {
		fmt.Println("ioctl:", errno)
		os.Exit(1)
	}
}

func open(path string) int {
	file, err := syscall.Open(path, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		fmt.Println(path, err)
		os.Exit(1)
	}
	return file
}

// Touches a file beyond its end, which is a bus error that the runtime makes a panic of.
func faults() (recovered bool) {
	debug.SetPanicOnFault(true)
	defer func() { recovered = recover() != nil }()
	file, _ := os.CreateTemp("", "go")
	defer os.Remove(file.Name())
	beyond, err := syscall.Mmap(int(file.Fd()), 0, 4096, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		fmt.Println("mmap:", err)
		os.Exit(1)
	}
	fmt.Println("beyond the end:", beyond[0])
	return false
}

func main() {
	iommu, device := open("/dev/iommu"), open("/dev/vfio/devices/vfio0")
	bind := struct {
		argsz, flags uint32
		iommufd      int32
		devid        uint32
		token        uint64
	}{argsz: 24, iommufd: int32(iommu)}
	ioctl(device, ';'<<8|118, unsafe.Pointer(&bind))
	region := struct{ argsz, flags, index, capabilities uint32; size, offset uint64 }{argsz: 32}
	ioctl(device, ';'<<8|108, unsafe.Pointer(&region))
	registers, err := syscall.Mmap(device, int64(region.offset), int(region.size),
		syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		fmt.Println("mmap:", err)
		os.Exit(1)
	}
	var all sync.WaitGroup
	for n := 0; n < 8; n++ {
		all.Add(1)
		go func() {
			defer all.Done()
			for round := 0; round < 2000; round++ {
				if registers[8] != 0x32 {
					fmt.Println("a register has another value")
					os.Exit(1)
				}
				if round%500 == 0 {
					runtime.GC()
				}
			}
		}()
	}
	all.Wait()
	if !faults() || registers[8] != 0x32 {
		fmt.Println("a bus error of its own was lost")
		os.Exit(1)
	}
	fmt.Println("done")
}
