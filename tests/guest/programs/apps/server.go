// A server in Go: goroutines, channels, timers, a child, garbage, connections over unix and TCP.
package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

var (
	ticks, hashed, handed, lines, signals, rounds int64
	mutex                                         sync.Mutex
	errors                                        = []string{}
	child                                         int
	token                                         = fmt.Sprint(time.Now().UnixNano())
	kept                                          = map[int]string{}
)

func wrong(format string, args ...any) {
	mutex.Lock()
	defer mutex.Unlock()
	errors = append(errors, fmt.Sprintf(format, args...))
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

// A ring of goroutines that hand a number on.
func ring(size int) {
	first := make(chan int64)
	in := first
	for n := 0; n < size; n++ {
		out := make(chan int64)
		go func(in, out chan int64) {
			for number := range in {
				out <- number + 1
			}
		}(in, out)
		in = out
	}
	for number := int64(0); ; {
		first <- number
		got := <-in
		if got != number+int64(size) {
			wrong("the ring makes %d of %d", got, number)
		}
		number = got
		atomic.AddInt64(&handed, 1)
		time.Sleep(20 * time.Millisecond)
	}
}

func hash() {
	for {
		data := sha256.Sum256([]byte("kupgrade"))
		for n := 0; n < 300; n++ {
			data = sha256.Sum256(data[:])
		}
		if first := fmt.Sprintf("%x", data[:4]); first != right {
			wrong("the hash is %s, not %s", first, right)
		}
		atomic.AddInt64(&hashed, 1)
		time.Sleep(20 * time.Millisecond)
	}
}

var right = func() string {
	data := sha256.Sum256([]byte("kupgrade"))
	for n := 0; n < 300; n++ {
		data = sha256.Sum256(data[:])
	}
	return fmt.Sprintf("%x", data[:4])
}()

func garbage() {
	for round := 0; ; round++ {
		junk := make([][]byte, 0, 200)
		for n := 0; n < 200; n++ {
			junk = append(junk, make([]byte, 4096))
			junk[n][n] = byte(n)
		}
		for n, block := range junk {
			if block[n] != byte(n) || block[n+1] != 0 {
				wrong("junk %d was written by somebody else", n)
			}
		}
		key := round * 7919 % 50000
		if kept[key] != "value "+strconv.Itoa(key*key) {
			wrong("key %d is %q", key, kept[key])
		}
		kept[key] = "value " + strconv.Itoa(key*key)
		atomic.AddInt64(&rounds, 1)
		time.Sleep(30 * time.Millisecond)
	}
}

func echo() {
	cat := exec.Command("cat")
	in, err := cat.StdinPipe()
	check(err)
	out, err := cat.StdoutPipe()
	check(err)
	check(cat.Start())
	child = cat.Process.Pid
	reader := bufio.NewReader(out)
	for {
		line := fmt.Sprintf("line %d\n", lines)
		in.Write([]byte(line))
		if got, err := reader.ReadString('\n'); err != nil || got != line {
			wrong("the child says %q (%v) for %q", got, err, line)
			return
		}
		atomic.AddInt64(&lines, 1)
		time.Sleep(50 * time.Millisecond)
	}
}

func answer(line string) string {
	switch {
	case line == "gc":
		runtime.GC()
		return "done"
	case strings.HasPrefix(line, "late "):
		seconds, err := strconv.Atoi(line[5:])
		check(err)
		<-time.After(time.Duration(seconds) * time.Second)
		return line
	case line != "facts":
		text := []byte(line)
		for a, b := 0, len(text)-1; a < b; a, b = a+1, b-1 {
			text[a], text[b] = text[b], text[a]
		}
		return string(text)
	}
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	mutex.Lock()
	defer mutex.Unlock()
	facts, err := json.Marshal(map[string]any{
		"pid": os.Getpid(), "token": token, "child": child, "errors": errors, "ticks": atomic.LoadInt64(&ticks), "hashed": atomic.LoadInt64(&hashed),
		"handed": atomic.LoadInt64(&handed), "lines": atomic.LoadInt64(&lines), "rounds": atomic.LoadInt64(&rounds), "signals": atomic.LoadInt64(&signals),
		"collections": memory.NumGC, "goroutines": runtime.NumGoroutine(), "now": float64(time.Now().UnixMilli()) / 1000,
	})
	check(err)
	return string(facts)
}

func serve(listener net.Listener) {
	for {
		connection, err := listener.Accept()
		check(err)
		go func() {
			defer connection.Close()
			for scanner := bufio.NewScanner(connection); scanner.Scan(); {
				fmt.Fprintln(connection, answer(scanner.Text()))
			}
		}()
	}
}

func main() {
	period, err := strconv.Atoi(os.Args[3])
	check(err)
	for key := 0; key < 50000; key++ {
		kept[key] = "value " + strconv.Itoa(key*key)
	}
	hups := make(chan os.Signal, 1)
	signal.Notify(hups, syscall.SIGHUP)
	go func() {
		for range hups {
			atomic.AddInt64(&signals, 1)
		}
	}()
	go func() {
		for range time.Tick(time.Duration(period) * time.Millisecond) {
			atomic.AddInt64(&ticks, 1)
		}
	}()
	go ring(200)
	go garbage()
	go echo()
	for n := 0; n < 3; n++ {
		go hash()
	}
	unix, err := net.Listen("unix", os.Args[1])
	check(err)
	tcp, err := net.Listen("tcp", "127.0.0.1:"+os.Args[2])
	check(err)
	go serve(unix)
	serve(tcp)
}
